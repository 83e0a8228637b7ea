"""Everything that xuni asks of the Linux it runs on: its terminal, package tools, cache folder and abilities."""
