"""Linux itself: the system calls that containers need, each one method of kernel.py. Nothing else makes them."""
