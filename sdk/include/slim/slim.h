/* slim/slim.h - slim from C, and from every language that can call C: link libslim_sdk (see docs/embed.md). C99-clean.
 * The same in C++ is slim/session.hpp. Strings are UTF-8 and end with '\0'. Nothing is thrown through these functions.
 * A session is used from one thread at a time, slim_session_cancel apart; sessions are independent of each other. */
#ifndef SLIM_SLIM_H_
#define SLIM_SLIM_H_
#include <stddef.h>
#include <stdint.h>

#include "slim/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What kind of thing went wrong: the values of slim_error.code, the same as of slim::Code. */
typedef enum slim_code {
  SLIM_OK = 0,               /**< no error */
  SLIM_INVALID_ARGUMENT = 1, /**< the settings, or the way a function was called */
  SLIM_NOT_FOUND = 2,        /**< a file or a plugin that does not exist */
  SLIM_UNSUPPORTED = 3,      /**< understood, but not possible with this model, scheme or format */
  SLIM_INCOMPATIBLE = 4,     /**< a plugin built against another slim, LibTorch or C++ ABI */
  SLIM_CORRUPT = 5,          /**< a file contradicts itself or its specification */
  SLIM_OUT_OF_MEMORY = 6,    /**< memory, or the limit that was set for it */
  SLIM_IO = 7,               /**< reading or writing failed */
  SLIM_NUMERIC = 8,          /**< NaN, infinity, or a result that is not what it must be */
  SLIM_VERIFICATION = 9,     /**< what was written does not pass its check */
  SLIM_CANCELLED = 10,       /**< slim_session_cancel, or the progress callback */
  SLIM_INTERNAL = 11         /**< a fault of slim or of a plugin */
} slim_code;

/** One quantization job. Opened by slim_session_open, freed by slim_session_close. */
typedef struct slim_session slim_session;

/** How far a run is. The struct and its strings are valid during the callback only. */
typedef struct slim_progress {
  uint32_t struct_size;  /**< of this struct, in bytes; it only ever grows at its end */
  const char *phase;     /**< "quantizing" */
  const char *step;      /**< what was done last ("model.layers.3"), or "" */
  const char *warning;   /**< something the user should know, or null */
  int64_t done;          /**< steps of the phase that are done */
  int64_t steps;         /**< all steps of the phase; 0: unknown */
} slim_progress;

/** Called from the thread of slim_session_run whenever a phase starts, a step is done, or there is a warning. `user` is what
 *  was passed to slim_session_run. Returns 0 to go on, anything else to stop the run at its next safe point. */
typedef int32_t (*slim_progress_callback)(const slim_progress *progress, void *user);

/** "0.1.0", in static storage. Any thread. */
const char *slim_version(void);

/** Opens a job. `config_file`: a TOML file, or null. `settings`: `n_settings` assignments "key=value" over it, with the keys of
 *  `slim --help-keys` or options of plugins ("awq.grid=40"). Null on failure: `error` (may be null) then says why. */
slim_session *slim_session_open(const char *config_file, const char *const *settings, size_t n_settings, slim_error *error);

/** What would happen, from headers alone; slim_session_text and slim_session_json then hold it. Returns a slim_code; `error`
 *  (may be null) says what went wrong. */
int32_t slim_session_plan(slim_session *session, slim_error *error);

/** The job itself; returns when it is done. `callback` may be null. slim_session_text and slim_session_json then hold the report.
 *  Returns a slim_code; `error` (may be null) says what went wrong. On failure no output folder is left, but beside it the blocks that were finished, for a
 *  run with run.resume=true. */
int32_t slim_session_run(slim_session *session, slim_progress_callback callback, void *user, slim_error *error);

/** Asks a run in another thread to stop. Any thread; without a run it does nothing. */
void slim_session_cancel(slim_session *session);

/** The last plan or report for people; "" before. Owned by the session; valid until its next plan, run or close. */
const char *slim_session_text(const slim_session *session);

/** The last plan or report as one JSON object; "" before. Owned by the session; valid until its next plan, run or close. */
const char *slim_session_json(const slim_session *session);

/** Frees a session, whose run must have ended. Null is allowed. */
void slim_session_close(slim_session *session);

#ifdef __cplusplus
}
#endif
#endif /* SLIM_SLIM_H_ */
