"""What the decision log tells afterwards: inference that is valid after adaptive allocation, off-policy values, replay, reports."""
