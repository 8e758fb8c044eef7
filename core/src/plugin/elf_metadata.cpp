#include "plugin/elf_metadata.h"

#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "slim/export.hpp"

namespace slim {
namespace {

using Metadata = std::map<std::string, std::string>;
constexpr std::string_view kSection = "slim_meta";
constexpr uint64_t kLargestSection = 64 * 1024;  // the facts of a plugin take some hundred bytes

#if defined(__x86_64__)
constexpr uint16_t kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t kMachine = EM_AARCH64;
#else
#error "slim knows the ELF machine number of x86-64 and aarch64 only"
#endif

Status broken_library(const std::string& what) {
  return Status(Code::kCorrupt, "broken shared library: " + what);
}

/// [offset, offset + size) of the file, or nullopt if it does not lie inside.
std::optional<std::string_view> slice(std::string_view file, uint64_t offset, uint64_t size) {
  if (offset > file.size() || size > file.size() - offset) return std::nullopt;
  return file.substr(offset, size);
}

/// A header at an offset of any alignment.
template <class T>
std::optional<T> read_struct(std::string_view file, uint64_t offset) {
  const auto bytes = slice(file, offset, sizeof(T));
  if (!bytes) return std::nullopt;
  T value;
  std::memcpy(&value, bytes->data(), sizeof value);
  return value;
}

Result<Elf64_Ehdr> read_header(std::string_view file) {
  const auto incompatible = [](const std::string& what) { return Status(Code::kIncompatible, what); };
  if (file.substr(0, SELFMAG) != std::string_view(ELFMAG, SELFMAG)) {
    return incompatible("not a shared library (no ELF file)");
  }
  const auto header = read_struct<Elf64_Ehdr>(file, 0);
  if (!header) return broken_library("it ends inside its ELF header");
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB) {
    return incompatible("not a 64-bit little-endian ELF file");
  }
  if (header->e_machine != kMachine) {
    return incompatible("built for ELF machine " + std::to_string(header->e_machine) + ", this is machine " +
                        std::to_string(kMachine) + "; rebuild the plugin here");
  }
  if (header->e_type != ET_DYN) return incompatible("an ELF file, but no shared library");
  if (header->e_shnum == 0) return Status(Code::kNotFound, "no slim plugin: it has no section headers");
  if (header->e_shentsize != sizeof(Elf64_Shdr))
    return broken_library("its section headers have an unknown size");
  if (header->e_shstrndx >= header->e_shnum)
    return broken_library("its table of section names lies outside its sections");
  return *header;
}

Result<Elf64_Shdr> read_section(std::string_view file, const Elf64_Ehdr& header, uint16_t index) {
  const uint64_t table_size = uint64_t{header.e_shnum} * sizeof(Elf64_Shdr);
  const auto table = slice(file, header.e_shoff, table_size);
  if (!table) return broken_library("its section headers lie beyond its end (cut off?)");
  return *read_struct<Elf64_Shdr>(*table, uint64_t{index} * sizeof(Elf64_Shdr));
}

/// The name at an offset of the table of section names; nullopt if it is not terminated inside the table.
std::optional<std::string_view> name_at(std::string_view names, uint32_t offset) {
  if (offset >= names.size()) return std::nullopt;
  const size_t end = names.find('\0', offset);
  if (end == std::string_view::npos) return std::nullopt;
  return names.substr(offset, end - offset);
}

Result<std::string_view> find_section(std::string_view file) {
  SLIM_ASSIGN(const Elf64_Ehdr header, read_header(file));
  SLIM_ASSIGN(const Elf64_Shdr names_section, read_section(file, header, header.e_shstrndx));
  const auto names = slice(file, names_section.sh_offset, names_section.sh_size);
  if (names_section.sh_type == SHT_NOBITS || !names)
    return broken_library("its section names lie beyond its end (cut off?)");
  for (uint16_t i = 0; i < header.e_shnum; ++i) {
    SLIM_ASSIGN(const Elf64_Shdr section, read_section(file, header, i));
    if (name_at(*names, section.sh_name) != kSection) continue;
    if (section.sh_type == SHT_NOBITS || (section.sh_flags & SHF_COMPRESSED)) {
      return broken_library("its section slim_meta holds no plain bytes");
    }
    if (section.sh_size > kLargestSection) {
      return broken_library("its section slim_meta has " + std::to_string(section.sh_size) +
                            " bytes, expected at most " + std::to_string(kLargestSection));
    }
    const auto content = slice(file, section.sh_offset, section.sh_size);
    if (!content) return broken_library("its section slim_meta lies beyond its end (cut off?)");
    return *content;
  }
  return Status(Code::kNotFound, "no slim plugin: it has no section slim_meta");
}

/// The bytes of a section, and of the string table that belongs to it.
struct Table {
  std::string_view entries, names;
};

/// The first section of a type; empty if there is none.
Result<Table> find_table(std::string_view file, uint32_t type) {
  SLIM_ASSIGN(const Elf64_Ehdr header, read_header(file));
  for (uint16_t i = 0; i < header.e_shnum; ++i) {
    SLIM_ASSIGN(const Elf64_Shdr section, read_section(file, header, i));
    if (section.sh_type != type) continue;
    if (section.sh_link >= header.e_shnum)
      return broken_library("a section names a string table that it does not have");
    SLIM_ASSIGN(const Elf64_Shdr names, read_section(file, header, static_cast<uint16_t>(section.sh_link)));
    const auto entry_bytes = slice(file, section.sh_offset, section.sh_size);
    const auto name_bytes = slice(file, names.sh_offset, names.sh_size);
    if (!entry_bytes || !name_bytes || names.sh_type != SHT_STRTAB)
      return broken_library("its dynamic sections lie beyond its end (cut off?)");
    return Table{*entry_bytes, *name_bytes};
  }
  return Table{};
}

/// Calls f(entry) for every whole entry of a table.
template <class Entry, class F>
void for_each_entry(const Table& table, F&& f) {
  for (uint64_t at = 0; at + sizeof(Entry) <= table.entries.size(); at += sizeof(Entry))
    f(*read_struct<Entry>(table.entries, at));
}

/// These texts are printed: nothing in them may steer a terminal.
bool printable(std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) return false;
  }
  return true;
}

Status add_entry(std::string_view entry, Metadata& metadata) {
  const size_t equals = entry.find('=');
  if (equals == std::string_view::npos || equals == 0)
    return broken_library("its section slim_meta has an entry without a key");
  if (!printable(entry)) return broken_library("its section slim_meta has control characters");
  const auto [it, added] = metadata.emplace(entry.substr(0, equals), entry.substr(equals + 1));
  if (!added) return broken_library("its section slim_meta has '" + it->first + "' twice");
  return {};
}

}  // namespace

Result<Metadata> read_plugin_metadata(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  SLIM_ASSIGN(std::string_view section, find_section(text));
  Metadata metadata;
  while (!section.empty()) {
    const size_t end = std::min(section.find('\0'), section.size());
    if (end > 0) SLIM_TRY(add_entry(section.substr(0, end), metadata));
    section.remove_prefix(std::min(end + 1, section.size()));
  }
  return metadata;
}

Result<LibraryFacts> read_library_facts(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  LibraryFacts facts;
  SLIM_ASSIGN(const Table dynamic, find_table(text, SHT_DYNAMIC));
  for_each_entry<Elf64_Dyn>(dynamic, [&](const Elf64_Dyn& entry) {
    if (entry.d_tag != DT_NEEDED || entry.d_un.d_val > UINT32_MAX) return;
    const auto name = name_at(dynamic.names, static_cast<uint32_t>(entry.d_un.d_val));
    if (name && printable(*name)) facts.needed.emplace_back(*name);
  });
  SLIM_ASSIGN(const Table symbols, find_table(text, SHT_DYNSYM));
  for_each_entry<Elf64_Sym>(symbols, [&](const Elf64_Sym& symbol) {
    const unsigned binding = ELF64_ST_BIND(symbol.st_info), visibility = ELF64_ST_VISIBILITY(symbol.st_other);
    if (symbol.st_shndx == SHN_UNDEF || binding == STB_LOCAL || visibility == STV_HIDDEN ||
        visibility == STV_INTERNAL)
      return;
    const auto name = name_at(symbols.names, symbol.st_name);
    if (name && !name->empty() && printable(*name)) facts.exported.emplace_back(*name);
  });
  return facts;
}

}  // namespace slim
