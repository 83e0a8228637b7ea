"""Guests: kernels made of packages, the root file system that xuni gives them, and the words they exchange with us."""
