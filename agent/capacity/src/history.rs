//! Usage over time: from Prometheus where there is one, else from a recorder with one `SQLite` file; and who pays for it.
