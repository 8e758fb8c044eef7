#pragma once
#include <cstddef>
#include <functional>

/// Streams whose copies happen as late as an asynchronous device may do them: when something waits for them. Everything on the default
/// stream happens at once. What a real device would leave to luck is an error here:
///  - an operator touches memory that a copy which nothing has waited for still reads or writes;
///  - a copy on another stream touches device memory whose last operator that stream has not waited for;
///  - memory is freed under such a copy.
namespace standin {

using StreamId = long;
inline constexpr StreamId kDefaultStream = 0;

StreamId current_stream();
StreamId exchange_current_stream(StreamId);
/// One of the streams beside the default one.
StreamId pool_stream();

/// A piece of memory that an operator or copy touches, by its address on the host.
struct Range {
  const void* begin;
  size_t bytes;
};

/// An operator on the default stream touches it, now.
void touch(const Range&);
/// `copy` is done when something waits for `stream`.
void defer(StreamId stream, const Range& device, const Range& host, std::function<void()> copy);
/// The memory is about to be freed.
void forget_block(const void* begin, size_t bytes);

/// A place in a stream.
struct Event;
void record(Event*& event, StreamId stream);
void destroy(Event*);
/// `stream` waits for the event; the host waits for it; the host waits for all streams.
void block(Event*, StreamId stream);
void synchronize(Event*);
void synchronize_all();

}  // namespace standin
