"""The processor itself as engine: virtual CPUs of Linux's KVM behind the interface of `xuni.exits.Vcpu`."""
