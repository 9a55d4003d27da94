"""Load for a server, from outside: at a fixed rate, with latencies from the time at which each call should have been sent."""
