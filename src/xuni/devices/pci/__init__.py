"""PCI configuration space."""
