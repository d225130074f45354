"""The board: what a computer is made of besides its CPUs.

``layout`` is the address map, ``memory`` the RAM, ``bus`` what answers outside
it, ``interrupts`` the chips between devices and CPUs, ``clock`` and ``loop``
time and outside input, ``power`` the ways a machine ends; ``board`` puts them
together with an engine. Devices live one room further down and know none of
this.

Locks, always taken in this order:

1. ``Board.control``: pause, resume, reset and close, one at a time. Held while
   the engine stops its vCPUs, so never taken by a vCPU's thread.
2. ``Board.lock``: every call of a device, of the clock's timers and of the
   interrupt chips. Re-entrant. Nobody who holds it waits for another thread.
3. The leaf locks inside ``EventLoop`` and ``Power``: nothing is called
   while one is held.
"""
