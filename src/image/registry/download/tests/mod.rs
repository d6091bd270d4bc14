//! Faults of the network, of hosts, disks and processes.

mod faults;
mod lab;
mod life;
mod wire;
