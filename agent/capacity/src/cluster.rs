//! What the Kubernetes API tells of a live cluster, and what may not be asked. Reads only.
