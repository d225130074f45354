"""Kernel images, boot protocols and firmware tables: bytes in, bytes out.

What lives here turns files into a :class:`~kvmkit.boot.plan.BootPlan`: what to
write where in guest memory, and the state the first CPU starts in. Nothing in
here knows an engine, a thread or a device; addresses are handed in.

Read ``image`` (what a kernel file is), ``linux`` (how a plan is made) and
``find`` (where kernels are looked for) first.
"""
