//! Demand as a distribution over time: its quantiles, its holes, its drift.
