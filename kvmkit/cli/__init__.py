"""The command line: one file per sub-command; parses, calls, prints.

What a command does is a method somewhere below (``kvmkit.vm``,
``kvmkit.images``); what stands here is options, messages and exit codes.
Start-up is a feature: importing this package imports nothing.
"""
