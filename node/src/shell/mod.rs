//! The shell: everything of a member that touches threads, files, sockets and clocks. It decides nothing.

pub mod admin;
