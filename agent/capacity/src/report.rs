//! Who has what of each pool, what is idle, what is stranded, and why a pod waits: a pure function of what was read of a cluster.
