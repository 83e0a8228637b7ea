"""Where a device's data ends on the host."""
