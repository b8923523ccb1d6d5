"""The inside of the sandbox: what runs in the interpreter that nanochat.sandbox starts for every program.

    child.py        the story: limits, layers, then two processes: the candidate has the program, the judge its tests
    judge.py        runs the tests; what they call is a proxy that asks the candidate
    candidate.py    runs the program, then answers the judge's calls
    wire.py         values between the two, as plain data
    tiers.py        names of the tiers, and which one a set of layers amounts to
    system_calls.py namespaces.py landlock.py kernel.py     the layers

Only the standard library, and little of it: every program waits for these imports.
"""
