"""The software CPU: x86-64 in this process, for hosts where KVM is missing or too slow.

Unicorn (QEMU's TCG) translates guest code; a C core runs it (``core/``); this
room gives it CPUID, model-specific registers, registers by name and a thread.
It knows no device: interrupt controllers are handed in.
"""
