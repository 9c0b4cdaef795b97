// llama.cpp reports some failures by throwing. An exception that reaches a Rust frame
// ends the process, so calls that can throw go through here: 0, or 1 with the
// exception's text in `error`.

#pragma once

#include <cstddef>
#include <cstdio>
#include <exception>

template <typename F>
int guarded(char * error, size_t error_size, F && call) noexcept {
    try {
        call();
        return 0;
    } catch (const std::exception & e) {
        std::snprintf(error, error_size, "%s", e.what());
    } catch (...) {
        std::snprintf(error, error_size, "unknown C++ exception");
    }
    return 1;
}
