"""What Lark makes of grammar/nginx.lark; written by `make grammar`, not by hand."""

# fmt: off
TERMINALS = {
    'LAST': '(?:[^ \t\r\n;{}#"\'\\\\$]|\\\\[\\s\\S]|\\$\\{*+)(?:[^ \t\r\n;{\\\\$]++|\\\\[\\s\\S]|\\$\\{*+|[ \t\r\n]++(?=[^;{}#"\'\\\\]|\\\\[\\s\\S]))*+(?:[ \t\r\n]++)?;',
    'BARE': '(?:[^ \t\r\n;{}#"\'\\\\$]|\\\\[\\s\\S]|\\$\\{*+)(?:[^ \t\r\n;{\\\\$]++|\\\\[\\s\\S]|\\$\\{*+|[ \t\r\n]++(?=[^;{}#"\'\\\\]|\\\\[\\s\\S]))*+',
    'DQUOTED': '"(?:[^"\\\\]++|\\\\[\\s\\S])*+"(?=[ \t\r\n;{)]|\\Z)',
    'SQUOTED': "'(?:[^'\\\\]++|\\\\[\\s\\S])*+'(?=[ \t\r\n;{)]|\\Z)",
    'END': ';',
    'OPEN': '\\{',
    'CLOSE': '\\}',
    'LUA': '\\{[\\s\\S]*\\}',
}
IGNORED = ('#[^\n]*+', '[ \t\r\n]++')
ACTIONS: tuple[dict[str, int | tuple[int, str]], ...] = (
    {'EOF': (0, 'start'), 'BARE': 1, 'DQUOTED': 2, 'LAST': 3, 'SQUOTED': 4},
    {'BARE': (1, '___words_plus_1'), 'DQUOTED': (1, '___words_plus_1'), 'END': (1, '___words_plus_1'), 'LAST': (1, '___words_plus_1'), 'LUA': (1, '___words_plus_1'), 'OPEN': (1, '___words_plus_1'), 'SQUOTED': (1, '___words_plus_1')},
    {'BARE': (1, '___words_plus_1'), 'DQUOTED': (1, '___words_plus_1'), 'END': (1, '___words_plus_1'), 'LAST': (1, '___words_plus_1'), 'LUA': (1, '___words_plus_1'), 'OPEN': (1, '___words_plus_1'), 'SQUOTED': (1, '___words_plus_1')},
    {'EOF': (1, '__start_star_0'), 'BARE': (1, '__start_star_0'), 'CLOSE': (1, '__start_star_0'), 'DQUOTED': (1, '__start_star_0'), 'LAST': (1, '__start_star_0'), 'SQUOTED': (1, '__start_star_0')},
    {'BARE': (1, '___words_plus_1'), 'DQUOTED': (1, '___words_plus_1'), 'END': (1, '___words_plus_1'), 'LAST': (1, '___words_plus_1'), 'LUA': (1, '___words_plus_1'), 'OPEN': (1, '___words_plus_1'), 'SQUOTED': (1, '___words_plus_1')},
    {'BARE': 10, 'DQUOTED': 11, 'END': (1, '_words'), 'LAST': (1, '_words'), 'LUA': (1, '_words'), 'OPEN': (1, '_words'), 'SQUOTED': 12},
    {'EOF': (1, 'start'), 'BARE': 1, 'DQUOTED': 2, 'LAST': 13, 'SQUOTED': 4},
    {'EOF': (1, '__start_star_0'), 'BARE': (1, '__start_star_0'), 'CLOSE': (1, '__start_star_0'), 'DQUOTED': (1, '__start_star_0'), 'LAST': (1, '__start_star_0'), 'SQUOTED': (1, '__start_star_0')},
    {'END': 15, 'LAST': 16, 'LUA': 17, 'OPEN': 18},
    {},
    {'BARE': (2, '___words_plus_1'), 'DQUOTED': (2, '___words_plus_1'), 'END': (2, '___words_plus_1'), 'LAST': (2, '___words_plus_1'), 'LUA': (2, '___words_plus_1'), 'OPEN': (2, '___words_plus_1'), 'SQUOTED': (2, '___words_plus_1')},
    {'BARE': (2, '___words_plus_1'), 'DQUOTED': (2, '___words_plus_1'), 'END': (2, '___words_plus_1'), 'LAST': (2, '___words_plus_1'), 'LUA': (2, '___words_plus_1'), 'OPEN': (2, '___words_plus_1'), 'SQUOTED': (2, '___words_plus_1')},
    {'BARE': (2, '___words_plus_1'), 'DQUOTED': (2, '___words_plus_1'), 'END': (2, '___words_plus_1'), 'LAST': (2, '___words_plus_1'), 'LUA': (2, '___words_plus_1'), 'OPEN': (2, '___words_plus_1'), 'SQUOTED': (2, '___words_plus_1')},
    {'EOF': (2, '__start_star_0'), 'BARE': (2, '__start_star_0'), 'CLOSE': (2, '__start_star_0'), 'DQUOTED': (2, '__start_star_0'), 'LAST': (2, '__start_star_0'), 'SQUOTED': (2, '__start_star_0')},
    {'EOF': (2, '__start_star_0'), 'BARE': (2, '__start_star_0'), 'CLOSE': (2, '__start_star_0'), 'DQUOTED': (2, '__start_star_0'), 'LAST': (2, '__start_star_0'), 'SQUOTED': (2, '__start_star_0')},
    {'EOF': (2, '_statement'), 'BARE': (2, '_statement'), 'CLOSE': (2, '_statement'), 'DQUOTED': (2, '_statement'), 'LAST': (2, '_statement'), 'SQUOTED': (2, '_statement')},
    {'EOF': (2, '_statement'), 'BARE': (2, '_statement'), 'CLOSE': (2, '_statement'), 'DQUOTED': (2, '_statement'), 'LAST': (2, '_statement'), 'SQUOTED': (2, '_statement')},
    {'EOF': (2, '_statement'), 'BARE': (2, '_statement'), 'CLOSE': (2, '_statement'), 'DQUOTED': (2, '_statement'), 'LAST': (2, '_statement'), 'SQUOTED': (2, '_statement')},
    {'BARE': 1, 'CLOSE': 19, 'DQUOTED': 2, 'LAST': 3, 'SQUOTED': 4},
    {'EOF': (3, '_statement'), 'BARE': (3, '_statement'), 'CLOSE': (3, '_statement'), 'DQUOTED': (3, '_statement'), 'LAST': (3, '_statement'), 'SQUOTED': (3, '_statement')},
    {'BARE': 1, 'CLOSE': 21, 'DQUOTED': 2, 'LAST': 13, 'SQUOTED': 4},
    {'EOF': (4, '_statement'), 'BARE': (4, '_statement'), 'CLOSE': (4, '_statement'), 'DQUOTED': (4, '_statement'), 'LAST': (4, '_statement'), 'SQUOTED': (4, '_statement')},
)
GOTOS: tuple[dict[str, int], ...] = (
    {'___words_plus_1': 5, '__start_star_0': 6, '_statement': 7, '_words': 8, 'start': 9},
    {},
    {},
    {},
    {},
    {},
    {'___words_plus_1': 5, '_statement': 14, '_words': 8},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {'___words_plus_1': 5, '__start_star_0': 20, '_statement': 7, '_words': 8},
    {},
    {'___words_plus_1': 5, '_statement': 14, '_words': 8},
    {},
)
SOURCE = """\
// The syntax of nginx configuration files (src/core/ngx_conf_file.c).
//
// A statement is one word or more, ended by ";" or by a block in braces. What
// surprises: inside a bare word "}", "#" and quotes are ordinary characters; "$"
// makes ordinary characters of the "{" that follow it; a backslash keeps the next
// character from ending the word, but stays in its value unless it is one of the
// escapes \\" \\' \\\\ \\t \\r \\n; and after a closing quote there may only be a blank,
// ";", "{" or, as the start of another word, ")".
//
// Bare words with only blanks between them are one token, and with the ";" behind them
// they still are. So most statements are a single token, which is what makes reading
// fast. BARE takes all that it can get: if no ";" follows, it is not tried again word by
// word.
//
// Quantifiers are possessive: whatever the bytes, matching takes linear time.
//
// After a change: make grammar

start: (LAST | _statement)*
_statement: _words (LAST | END)
          | _words OPEN (LAST | _statement)* CLOSE
          | _words LUA
_words: (BARE | DQUOTED | SQUOTED)+

LAST: BARE BLANK? END
BARE: /(?:[^ \\t\\r\\n;{}#"'\\\\$]|\\\\[\\s\\S]|\\$\\{*+)(?:[^ \\t\\r\\n;{\\\\$]++|\\\\[\\s\\S]|\\$\\{*+|[ \\t\\r\\n]++(?=[^;{}#"'\\\\]|\\\\[\\s\\S]))*+/
DQUOTED: /"(?:[^"\\\\]++|\\\\[\\s\\S])*+"(?=[ \\t\\r\\n;{)]|\\Z)/
SQUOTED: /'(?:[^'\\\\]++|\\\\[\\s\\S])*+'(?=[ \\t\\r\\n;{)]|\\Z)/
END: ";"
OPEN: "{"
CLOSE: "}"
COMMENT: /#[^\\n]*+/
BLANK: /[ \\t\\r\\n]++/

// A Lua block, after a name like content_by_lua_block. This is its shape; where it
// ends no regular expression can tell, so the lexer looks for the matching brace.
LUA: "{" /[\\s\\S]*/ "}"

%ignore COMMENT
%ignore BLANK
"""
