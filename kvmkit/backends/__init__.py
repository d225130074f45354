"""The host's side of a device: terminals, and later disk images and networks.

A backend owns file descriptors and knows the host; it knows no guest register
and no CPU engine. Devices get it handed in.
"""
