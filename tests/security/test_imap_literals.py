"""Literals that announce more than there is, more than fits, or nothing at all."""

import pytest

from mailproxy.mail.literals import MAX_LITERAL
from tests.play import Stage, play

BUFFER = 4096


def imap(script: str, directives: str = "") -> Stage:
    script = f"S: * OK IMAP4 ready\n{script}"
    return play(script, f"protocol imap; {directives}")


@pytest.mark.parametrize("mark", ["", "+"])
@pytest.mark.parametrize("size", [BUFFER, 1 << 31, 1 << 32, 1 << 60, MAX_LITERAL])
def test_that_do_not_fit_end_the_session_when_the_buffer_is_full(
    size: int, mark: str
) -> None:
    prompt = "" if mark else "S: + OK"
    # No buffer is advised that would hold what nobody needs for a login.
    advice = " (increase imap_client_buffer to 8k)" if size == BUFFER else ""
    stage = imap(
        f"""
        C: a LOGIN {{{size}{mark}}}
        {prompt}
        C: ⟨x*5000⟩…
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "..."{advice} while in auth state, …
        """
    )
    assert stage.wire.received <= BUFFER


@pytest.mark.parametrize("mark", ["", "+"])
@pytest.mark.parametrize(
    "size",
    [
        *(str(MAX_LITERAL + 1), str(1 << 64), str((1 << 64) + 1), "9" * 4000),
        *("-1", "+1", "1 ", " 1", "1.0", "0x10", "1e3", "\uff11", "{1}", "1}{1"),
    ],
)
def test_that_no_counter_holds_are_not_well_formed(size: str, mark: str) -> None:
    """Behind a non-synchronising one nobody knows what is data and what a command."""
    end = "S: ⟨close⟩" if mark else "C: b NOOP\nS: b OK completed"
    imap(f"C: a LOGIN {{{size}{mark}}}\nS: a BAD invalid command\n{end}")


@pytest.mark.parametrize("digits", [5000, 100_000])
def test_with_more_digits_than_python_reads(digits: int) -> None:
    imap(
        f"""
        C: a LOGIN {{⟨9*{digits}⟩}}
        S: a BAD invalid command
        C: a LOGIN {{⟨0*{digits}⟩1}}
        S: + OK
        C: u p
        Q: plain u p
        """,
        "imap_client_buffer 1m;",
    )


def test_of_nothing_take_nothing() -> None:
    """nginx takes an octet for data, and makes a password of a CR."""
    imap(
        """
        C: a LOGIN u {0}
        S: + OK
        C:
        Q: plain u ""
        """
    )
    imap(
        "C: a LOGIN {0+}\nC:  p\nS: a BAD invalid command\nC: b NOOP\nS: b OK completed"
    )


def test_flood_of_small_ones_ends_with_the_buffer() -> None:
    """A command has three arguments and one buffer, however it is taken apart."""
    imap("C: a NOOP {1+}⏎x {1+}⏎x {1+}⏎x {1+}⏎x\nS: a BAD invalid command\nS: ⟨close⟩")
    stage = imap(
        """
        C: a LOGIN {1300+}⏎⟨u*1300⟩ {2700+}⏎⟨p*2700⟩⟨x*5000⟩
        S: a BAD invalid command
        S: ⟨close⟩
        """
    )
    assert stage.wire.received <= BUFFER


def test_flood_of_announcements_counts_as_errors() -> None:
    """LITERAL+ without data: each line is a bad command, and the first closes."""
    imap("C: ⟨a FETCH {9999999999+}⏎*1000⟩\nS: a BAD invalid command\nS: ⟨close⟩")


def test_prompts_are_bounded_by_the_commands() -> None:
    """A prompt for each literal, but the literals belong to commands that count."""
    answered = "S: + OK\nS: a OK completed\n"
    stage = imap(
        f"""
        C: ⟨a NOOP {{1}}⏎x⏎*20⟩…
        {answered * 10}
        S: + OK
        S: a BAD invalid command
        S: ⟨close⟩
        """,
        "max_commands 10;",
    )
    assert any("too many commands" in text for _, text in stage.log.events)


def test_commands_hidden_in_a_literal_are_data() -> None:
    imap(
        """
        C: a LOGIN {24}
        S: + OK
        C: b LOGIN admin admin⏎c N p
        S: a BAD invalid command
        C: d NOOP
        S: d OK completed
        """
    )
