//! Reading traces: jobs or demand over time, from CSV (plain, gzip, zstd), in constant memory. Every byte is hostile: what is wrong becomes an error with its line, or a warning that is counted.
