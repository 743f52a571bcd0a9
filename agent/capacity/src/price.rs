//! Prices: one dated file of list prices, overridden by the admin's. Knows currencies and never mixes them.
