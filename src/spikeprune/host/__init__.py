"""Python and the machine underneath: modules found by name, files that register themselves, sources, the processor."""
