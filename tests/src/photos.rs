//! TEMPORARY stub; its owner overwrites this file.
