//! Replaying jobs against a described pool: cost, waiting times, spilled share, utilisation, fragmentation over time.
