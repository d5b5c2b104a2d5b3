"""Several nodes as one stage: a head that the chain starts, and members, one on each node.

The head listens at the rendezvous. A member that comes proves that it sees the run's folder and
says what it is; the head refuses it by name or takes it, waits until every file that the stage
needs is seen on every node, and then lets all members start their processes. They tell it what
these tell, and that they live. Whoever is not heard of for :data:`~.words.SILENCE_S` is lost, and
every other one ends what it runs.
"""
