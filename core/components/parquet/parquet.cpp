// libslim_parquet.so: parquet files through Arrow C++, row by row as CBOR.
#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/visit_array_inline.h>
#include <parquet/arrow/reader.h>
#include <parquet/file_reader.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "data/parquet_component.h"

namespace {

using Json = nlohmann::json;
constexpr int64_t kRowsAtOnce = 16;  // a row may hold several images
constexpr int kMaxDepth = 32;        // of lists and structs in each other

/// Why the file cannot be read; caught at the exported function.
struct Failure {
  std::string message;
};

void check(const arrow::Status& status) {
  if (!status.ok()) throw Failure{"no parquet file that Arrow can read: " + status.message()};
}

template <class T>
T checked(arrow::Result<T> result) {
  check(result.status());
  return std::move(result).ValueUnsafe();
}

Json value_of(const arrow::Array& array, int64_t index, const std::string& column, int depth);

Json list_of(const arrow::Array& values, int64_t begin, int64_t end, const std::string& column, int depth) {
  Json list = Json::array();
  for (int64_t i = begin; i < end; ++i) list.push_back(value_of(values, i, column, depth));
  return list;
}

Json bytes_of(std::string_view bytes) {
  return Json::binary(Json::binary_t::container_type(bytes.begin(), bytes.end()));
}

/// One value as JSON. Arrow's types are many; those that no data set of samples uses are errors.
class ValueReader {
 public:
  ValueReader(int64_t index, const std::string& column, int depth)
      : index_(index), column_(column), depth_(depth) {}

  Json value;

  arrow::Status Visit(const arrow::BooleanArray& array) { return keep(array.Value(index_)); }
  template <class Type>
    requires(arrow::is_integer_type<Type>::value || std::is_same_v<Type, arrow::FloatType> ||
             std::is_same_v<Type, arrow::DoubleType>)
  arrow::Status Visit(const arrow::NumericArray<Type>& array) {
    return keep(array.Value(index_));
  }
  arrow::Status Visit(const arrow::StringArray& array) { return keep(array.GetString(index_)); }
  arrow::Status Visit(const arrow::LargeStringArray& array) { return keep(array.GetString(index_)); }
  arrow::Status Visit(const arrow::StringViewArray& array) { return keep(array.GetString(index_)); }
  arrow::Status Visit(const arrow::BinaryArray& array) { return keep(bytes_of(array.GetView(index_))); }
  arrow::Status Visit(const arrow::LargeBinaryArray& array) { return keep(bytes_of(array.GetView(index_))); }
  arrow::Status Visit(const arrow::BinaryViewArray& array) { return keep(bytes_of(array.GetView(index_))); }
  arrow::Status Visit(const arrow::FixedSizeBinaryArray& array) {
    return keep(bytes_of(array.GetView(index_)));
  }
  arrow::Status Visit(const arrow::ListArray& array) { return read_list(array); }
  arrow::Status Visit(const arrow::LargeListArray& array) { return read_list(array); }
  arrow::Status Visit(const arrow::FixedSizeListArray& array) { return read_list(array); }
  arrow::Status Visit(const arrow::StructArray& array) {
    value = Json::object();
    for (int i = 0; i < array.num_fields(); ++i) {
      value[array.struct_type()->field(i)->name()] = value_of(*array.field(i), index_, column_, depth_);
    }
    return arrow::Status::OK();
  }
  arrow::Status Visit(const arrow::DictionaryArray& array) {
    return keep(value_of(*array.dictionary(), array.GetValueIndex(index_), column_, depth_));
  }
  arrow::Status Visit(const arrow::ExtensionArray& array) {
    return keep(value_of(*array.storage(), index_, column_, depth_));
  }
  arrow::Status Visit(const arrow::Array& array) {
    throw Failure{"column '" + column_ + "' holds " + array.type()->ToString() +
                  ", expected text, numbers, bytes, and lists or structs of them"};
  }

 private:
  arrow::Status keep(Json found) {
    value = std::move(found);
    return arrow::Status::OK();
  }
  template <class List>
  arrow::Status read_list(const List& array) {
    return keep(list_of(*array.values(), array.value_offset(index_),
                        array.value_offset(index_) + array.value_length(index_), column_, depth_));
  }

  int64_t index_;
  const std::string& column_;
  int depth_;
};

Json value_of(const arrow::Array& array, int64_t index, const std::string& column, int depth) {
  if (depth > kMaxDepth) {
    throw Failure{"column '" + column + "' is nested deeper than " + std::to_string(kMaxDepth) + " levels"};
  }
  if (array.IsNull(index)) return nullptr;
  ValueReader reader(index, column, depth + 1);
  check(arrow::VisitArrayInline(array, &reader));
  return std::move(reader.value);
}

class Table {
 public:
  explicit Table(const char* path) {
    auto file = checked(arrow::io::ReadableFile::Open(path));
    parquet::ReaderProperties properties = parquet::default_reader_properties();
    properties.enable_buffered_stream();  // pages as they are needed, not whole row groups
    parquet::ArrowReaderProperties arrow_properties(/*use_threads=*/false);
    arrow_properties.set_batch_size(kRowsAtOnce);
    arrow_properties.set_pre_buffer(false);
    parquet::arrow::FileReaderBuilder builder;
    check(builder.Open(std::move(file), properties));
    check(builder.properties(arrow_properties)->Build(&reader_));
  }

  std::vector<std::string> columns() const {
    const parquet::schema::GroupNode& root = *schema().group_node();
    std::vector<std::string> names;
    for (int i = 0; i < root.field_count(); ++i) names.push_back(root.field(i)->name());
    return names;
  }

  /// Calls row(json) until it returns false.
  template <class Row>
  void read(const std::vector<std::string>& columns, const std::vector<uint8_t>& wanted, const Row& row) {
    std::set<std::string> names;
    for (size_t i = 0; i < columns.size(); ++i) {
      if (wanted[i]) names.insert(columns[i]);
    }
    std::vector<int> leaves, groups(static_cast<size_t>(reader_->num_row_groups()));
    for (int i = 0; i < schema().num_columns(); ++i) {
      if (names.contains(schema().GetColumnRoot(i)->name())) leaves.push_back(i);
    }
    for (size_t i = 0; i < groups.size(); ++i) groups[i] = static_cast<int>(i);
    const auto batches = checked(reader_->GetRecordBatchReader(groups, leaves));
    Json blank = Json::object();
    for (const std::string& name : columns) blank[name] = nullptr;
    while (const auto batch = checked(batches->Next())) {
      check(batch->ValidateFull());  // offsets and UTF-8 of a file that nobody has checked
      for (int64_t i = 0; i < batch->num_rows(); ++i) {
        Json record = blank;
        for (int c = 0; c < batch->num_columns(); ++c) {
          record[batch->column_name(c)] = value_of(*batch->column(c), i, batch->column_name(c), 0);
        }
        if (!row(record)) return;
      }
    }
  }

 private:
  const parquet::SchemaDescriptor& schema() const {
    return *reader_->parquet_reader()->metadata()->schema();
  }

  std::unique_ptr<parquet::arrow::FileReader> reader_;
};

void read_file(const slim_parquet_reading& reading) {
  Table table(reading.path);
  const std::vector<std::string> columns = table.columns();
  std::vector<const char*> names;
  for (const std::string& name : columns) names.push_back(name.c_str());
  std::vector<uint8_t> wanted(columns.size(), 0);
  if (reading.columns(reading.context, names.data(), names.size(), wanted.data()) != 0) return;
  std::vector<uint8_t> cbor;
  table.read(columns, wanted, [&](const Json& record) {
    cbor.clear();
    Json::to_cbor(record, cbor);
    return reading.row(reading.context, cbor.data(), cbor.size()) == 0;
  });
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int slim_parquet_read_v1(const slim_parquet_reading* reading) {
  const auto fail = [reading](const char* message) {
    std::string line(message);  // Arrow's messages may have several lines
    std::replace(line.begin(), line.end(), '\n', ' ');
    std::snprintf(reading->error, reading->error_size, "%s", line.c_str());
    return 1;
  };
  try {
    read_file(*reading);
    return 0;
  } catch (const Failure& failure) {
    return fail(failure.message.c_str());
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
