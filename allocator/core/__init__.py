"""Values in, values out: what is decided, planned and judged. No I/O, no clock, no hidden chance."""
