"""Moves values between the core and the ports: outcomes in, plans out, an operator's commands carried out. Knows no transport."""
