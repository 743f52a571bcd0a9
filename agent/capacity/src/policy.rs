//! The words of policies: who may burst and when, how jobs are queued, how they are packed.
