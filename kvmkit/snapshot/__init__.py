"""A VM on disk: what a snapshot is, how it is saved, and how a VM goes on from it.

:mod:`~kvmkit.snapshot.records` turns state records into text and back,
:mod:`~kvmkit.snapshot.format` is the directory, :mod:`~kvmkit.snapshot.pages`
the memory in it. A board gives and takes its state
(:meth:`kvmkit.board.board.Board.state`); this room knows no thread and no engine.
"""
