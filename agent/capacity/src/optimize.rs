//! How many of which machine to own at the prices given, how sure that is, and what it would have cost on the time that followed.
