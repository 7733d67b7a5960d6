//! The two calls of the C library that Cofferdam needs and that nobody has a safe name for. A package of its own, since
//! Cofferdam itself forbids `unsafe`. With other C libraries than glibc they do nothing.

/// Has all threads share two heaps. By itself glibc makes one for each thread, up to eight for each processor, and each keeps what is free.
/// To be called before there is another thread.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and changes only how many heaps are made from now on (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives the pages of the heap that hold nothing back to the system. glibc does so by itself only at the end of each of its heaps,
/// and one small thing that stays there keeps all that is before it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and frees nothing that is in use; any thread may call it at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
