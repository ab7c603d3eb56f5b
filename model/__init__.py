"""The network: weights and tensor maths."""

import atexit
import gc

# At exit Python would look for cycles among all that torch and transformers made: two seconds, to free what the process's end frees anyway.
atexit.register(gc.freeze)
