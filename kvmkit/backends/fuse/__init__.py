"""A FUSE server: a directory of the host as a guest's file system.

Linux, ``Documentation/filesystems/fuse.rst`` and ``include/uapi/linux/fuse.h``
(protocol 7); virtio 1.2, section 5.11 carries it. Here live the protocol
(``abi``), what the guest knows of the share (``inodes``, ``handles``), one file
per group of operations, and the ``server`` that ties them together. Nothing here
knows of rings or threads; any number of threads may serve requests.
"""
