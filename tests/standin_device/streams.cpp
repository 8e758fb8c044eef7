#include "streams.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

namespace standin {

struct Event {
  StreamId stream = kDefaultStream;
  uint64_t place = 0;  ///< copies of the stream before it
  uint64_t time = 0;   ///< operators of the default stream before it
};

namespace {

constexpr StreamId kPool = 4;

struct Copy {
  Range device, host;
  std::function<void()> run;
};
struct Stream {
  std::deque<Copy> waiting;
  uint64_t done = 0;    ///< copies that have happened
  uint64_t waited = 0;  ///< operators of the default stream that it comes after
};

// Never destroyed: tensors may be freed by destructors of globals.
auto& mutex = *new std::recursive_mutex;  // a copy allocates nothing, but frees what it kept
auto& streams = *new std::map<StreamId, Stream>;
auto& used = *new std::map<const void*, std::pair<size_t, uint64_t>>;  // memory and the last operator that touched it
uint64_t now = 0;                                                      // operators of the default stream so far
thread_local StreamId current = kDefaultStream;

bool overlap(const Range& a, const Range& b) {
  const auto *first = static_cast<const char*>(a.begin), *second = static_cast<const char*>(b.begin);
  return first < second + b.bytes && second < first + a.bytes;
}

void run_until(Stream& stream, uint64_t place) {
  while (stream.done < place && !stream.waiting.empty()) {
    const Copy copy = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    ++stream.done;
    copy.run();
  }
}

void check_idle(const Range& range, const char* what) {
  for (const auto& [id, stream] : streams) {
    for (const Copy& copy : stream.waiting) {
      TORCH_CHECK(!overlap(copy.device, range) && !overlap(copy.host, range), "stand-in device: memory is ", what,
                  " before a copy on stream ", id, " that uses it was waited for");
    }
  }
}

}  // namespace

StreamId current_stream() { return current; }
StreamId exchange_current_stream(StreamId stream) { return std::exchange(current, stream); }
StreamId pool_stream() {
  const std::lock_guard lock(mutex);
  static StreamId next = 0;
  next = next % kPool + 1;
  return next;
}

void touch(const Range& range) {
  if (range.bytes == 0) return;
  const std::lock_guard lock(mutex);
  check_idle(range, "used");
  used[range.begin] = {range.bytes, ++now};
}

void defer(StreamId id, const Range& device, const Range& host, std::function<void()> copy) {
  const std::lock_guard lock(mutex);
  Stream& stream = streams[id];
  for (const auto& [begin, use] : used) {
    TORCH_CHECK(!overlap({begin, use.first}, device) || use.second <= stream.waited, "stand-in device: a copy on stream ", id,
                " uses memory of the default stream without waiting for it");
  }
  stream.waiting.push_back({device, host, std::move(copy)});
}

void forget_block(const void* begin, size_t bytes) {
  const std::lock_guard lock(mutex);
  const Range range{begin, bytes};
  for (auto& [id, stream] : streams) {
    for (Copy& copy : stream.waiting) {
      if (!overlap(copy.device, range) && !overlap(copy.host, range)) continue;
      std::fprintf(stderr, "stand-in device: memory is freed before a copy on stream %ld that uses it was waited for\n", id);
      std::abort();  // inside destructors
    }
  }
  const auto first = used.lower_bound(begin);
  used.erase(first, used.lower_bound(static_cast<const char*>(begin) + bytes));
}

void record(Event*& event, StreamId stream) {
  const std::lock_guard lock(mutex);
  if (!event) event = new Event;
  const Stream& recorded = streams[stream];
  *event = {stream, recorded.done + recorded.waiting.size(), stream == kDefaultStream ? now : recorded.waited};
}

void destroy(Event* event) { delete event; }

void block(Event* event, StreamId id) {
  const std::lock_guard lock(mutex);
  run_until(streams[event->stream], event->place);
  streams[id].waited = std::max(streams[id].waited, event->time);
}

void synchronize(Event* event) {
  const std::lock_guard lock(mutex);
  run_until(streams[event->stream], event->place);
}

void synchronize_all() {
  const std::lock_guard lock(mutex);
  for (auto& [id, stream] : streams) {
    run_until(stream, UINT64_MAX);
    stream.waited = now;
  }
}

}  // namespace standin
