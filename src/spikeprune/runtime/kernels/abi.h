// Everything that Python mirrors of a kernel's interface, as text that it compares when it loads the library.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

// "VALUE NAME" a line: sizes of structs, places of fields, numbers of codes.
class Abi {
 public:
  explicit Abi(const std::vector<std::pair<const char*, size_t>>& facts) noexcept {
    try {
      for (const auto& [name, value] : facts) text_ += std::to_string(value) + " " + name + "\n";
    } catch (...) {
      text_.clear();  // no mirror agrees with nothing
    }
  }
  const char* text() const { return text_.c_str(); }

 private:
  std::string text_;
};
