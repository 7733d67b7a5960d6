//! The one call of the C library that Cofferdam needs and that nobody has a safe name for. A package of its own, since
//! Cofferdam itself forbids `unsafe`.

/// Gives the pages of the heap that hold nothing back to the system. glibc does so by itself only at the end of each of its heaps,
/// and one small thing that stays there keeps all that is before it. With other C libraries it does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and frees nothing that is in use; any thread may call it at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
