"""What all tests need."""

import signal

# A worker's line to its master raises SIGIO in the process of the test that plays the
# master. That test blocks it, but the kernel gives it to any thread that does not, and
# trio keeps threads of other tests for a while. Threads inherit what is blocked here.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
