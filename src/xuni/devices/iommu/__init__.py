"""Intel VT-d: DMA remapping and interrupt remapping.

Spec: Intel Virtualization Technology for Directed I/O, architecture specification (D51397), revision 3.1, legacy mode.
Not offered: scalable mode, device TLBs, posted interrupts, x2APIC mode (EIM), protected memory regions, advanced fault
logging.
"""
