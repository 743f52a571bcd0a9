//! Pages that need no network: plots with a table beside each, from the same values that are printed.
