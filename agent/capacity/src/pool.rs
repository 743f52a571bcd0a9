//! A described pool: dedicated machines with their shapes, and what is rented beside them.
