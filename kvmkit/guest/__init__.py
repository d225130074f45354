"""What runs inside the guest for us.

``init`` is the shell script that the guest starts first; ``initramfs`` packs
it with a static busybox, ``command`` says which program it is to run,
``cpio`` is the archive format of both. ``report`` reads what the guest says on
its fourth serial port, ``console_input`` makes a terminal out there carry the
bytes of a pipe. Bytes in, bytes out: nothing here knows a machine.
"""
