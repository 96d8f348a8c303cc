#pragma once

#include <optional>
#include <string>
#include <string_view>

// GPT-2's alphabet, in which a byte-level vocabulary spells bytes: each byte is one letter.

std::string spell_bytes(std::string_view bytes);

// The bytes that `token` spells, if all its characters are letters of the alphabet.
std::optional<std::string> spelled_bytes(std::string_view token);
