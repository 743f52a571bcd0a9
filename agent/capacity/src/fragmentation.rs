//! Free but not usable: what no job can have because of how it is scattered, and the largest job that fits.
