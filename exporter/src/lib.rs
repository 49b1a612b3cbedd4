//! Fetches VMs and submits them to the queue.
