//! Before and after, side by side: other machines, other prices, other demand.
