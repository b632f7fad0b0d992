"""The command line, ``pyncette``: looks at tasks, and steers them.

    arguments    what may be given, and how errors end the program
    loading      finds the app that is named
    values       reads instants, durations and arguments
    printing     tables, JSON lines, progress, questions
    session      what a command gets: the app, its open context, the printer
    looking      list, show, next, runs, workers
    steering     pause, resume, trigger, retry
    scheduling   schedule, unschedule, purge, rebalance
    moving       export, import
    doctor       what goes wrong in practice
    completion   scripts for shells

All of it uses the calls of ``PyncetteContext`` that any program may use.
"""
