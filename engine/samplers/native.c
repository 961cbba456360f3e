/* The native engine, compiled: completes the prompts of a job, ids in and ids out, on one core.

The same function as `native.py` with `cpu_model.py` and `attention.py`, without a call into torch for each operation:
what a token needs stays in the caches of a core from one matrix to the next. A row is computed in one order of
additions whatever rows are beside it, so that its bits depend on nothing but its own tokens.

Some rows are read at a time: prefix, marks and drafts. Rows that do not go on leave their place in the cache to the
next ones; those that go on are decoded together, once all places are taken.

Keys lie as scores want them, one component of W slots side by side, values slot by slot. Vectors are those of GCC and
clang, which make of them what the processor has. Matrices lie in panels of TILE columns, a row of a panel after
another; sizes of heads and layers are rounded up with zeros (`compiled.py`).

Given by `compiled.py` are the numbers of `tokens.py`: CLASSES, LOCAL, DIGITS, EOS, PAD_ID, MAX_PLACE.

Legend: B rows, N tokens of a pass, P prefix tokens, L of them kept, T tokens of a branch, D hidden size, H heads, K head
size, I inner size, C classes. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#define TILE_VECTORS 4
#elif defined(__AVX__)
#define W 8
#define TILE_VECTORS 2
#else
#define W 4
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 6
#define TILE (W * TILE_VECTORS)
/* Rows of a panel that stay in the first-level cache. */
#define DEPTH 128
/* Tokens whose activations stay in the second-level cache from one matrix to the next. */
#define CHUNK 96
/* Rows that are decoded together, and the most that their keys and values take, in floats. */
#define PLACES 48
#define CACHE_SIZE (1 << 24)

#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * W), aligned(4), may_alias));

/* Matrices of a block; those behind a norm have its weights multiplied in. */
typedef struct {
    const float *query, *key_value, *out, *up, *down;
} Layer;

/* hidden: D. width, inner, query_width, key_value_width: columns of panels. heads_width: H * K.
   first: [ids, query_width + key_value_width], what the first layer makes of an id. rope: [places, 2, K] cosines, and
   sines with the sign of what they are added to. legal: [C, C] zero, or minus infinity where class j may not follow
   class i. mark_base: [LOCAL] the place before the first digit after a mark. */
typedef struct {
    int64_t num_layers, hidden, width, inner, heads, head_size, heads_width, query_width, key_value_width;
    float eps;
    const float *embed, *first, *rope, *head, *legal;
    const int64_t *mark_base;
    const Layer *layers;
} Model;

/* mark: [B]. draft: [B, drafted] what is read of it. output: [B, length]. noise: [B, length, C], or null. */
typedef struct {
    int64_t length, drafted;
    const int64_t *mark, *draft;
    int64_t *output;
    const float *noise;
} Branch;

/* prefix: [B, P]. kept_ids: [B, L]. kept: [B, kept_size] keys and values of these, to be written unless they are_kept;
   null if nothing is kept. */
typedef struct {
    int64_t rows, prefix_length, num_branches, kept_length, are_kept, drop_finished;
    float temperature;
    const int64_t *prefix, *kept_ids;
    float *kept;
    const Branch *branches;
} Call;

/* A token of a pass: it stands at a slot of a place of the cache, and sees the first `seen` slots there, and those from
   `start` to its own. noise: [C] for what follows it, or null. */
typedef struct {
    int64_t id, place, slot, seen, start;
    const float *noise;
} Token;

/* A completion under way. known: tokens of it. */
typedef struct {
    int64_t row, place, branch, known;
} Unit;

/* What a call works with. places: of the cache, with so many blocks of W slots each. free: those not taken, `num_free`
   of them. chosen: ids that follow the tokens asked. */
typedef struct {
    const Model *model;
    const Call *call;
    int64_t places, blocks, place_size, num_free, num_units, tokens_read, is_broken;
    int64_t free[PLACES];
    Unit *units;
    Token *tokens;
    int64_t *chosen;
    float *cache, *x, *normed, *query, *key_value, *mixed, *inner, *scores;
} Job;

/* ---- vectors ---- */

#define AT(pointer) (*(Vector *)(pointer))
#define SEEN_AT(pointer) (*(const Vector *)(pointer))

INLINE Vector all(float value) { return value - (Vector){0}; }

INLINE Vector larger(Vector a, Vector b)
{
    Integers first = a > b;
    return (Vector)(((Integers)a & first) | ((Integers)b & ~first));
}

/* The two halves of pairs change places. */
INLINE Vector swapped(Vector x)
{
#if W == 16
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif W == 8
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    return __builtin_shufflevector(x, x, 1, 0, 3, 2);
#endif
}

INLINE float sum_of(Vector x)
{
    float sum = 0;
    for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

INLINE float most_of(Vector x)
{
    float most = x[0];
    for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Powers of two with exponents of at most 0: the whole part goes into the exponent of a float, a polynomial of the rest
   is right to the last bit but one. What is no number becomes next to nothing, as what lies far below zero. */
INLINE Vector power_of_two(Vector x)
{
    x = larger(x, all(-126.0f));
    const Vector shifted = x + 12582912.0f, rest = x - (shifted - 12582912.0f);
    Vector y = all(1.535336188319500e-4f);
    y = y * rest + 1.339887440266574e-3f;
    y = y * rest + 9.618437357674640e-3f;
    y = y * rest + 5.550332471162809e-2f;
    y = y * rest + 2.402264791363012e-1f;
    y = y * rest + 6.931472028550421e-1f;
    y = y * rest + 1.0f;
    return (Vector)((Integers)y + ((Integers)shifted << 23));
}

/* ---- matrices ---- */

enum Then { STORE, ADD, SQUARE_RELU };

/* `rows` rows of x [N, depth] times a panel, stored, or added to y, or stored as the square of what is above zero. */
INLINE void multiply_tile(
    const int rows, const enum Then then, const int goes_on, const float *x, int64_t x_stride, const float *panel,
    int64_t depth, float *y, int64_t y_stride)
{
    Vector sums[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[r][v] = goes_on || then == ADD ? AT(y + r * y_stride + v * W) : all(0);
    for (int64_t k = 0; k < depth; k++) {
        Vector weights[TILE_VECTORS];
        for (int v = 0; v < TILE_VECTORS; v++) weights[v] = SEEN_AT(panel + k * TILE + v * W);
        for (int r = 0; r < rows; r++) {
            const Vector each = all(x[r * x_stride + k]);
            for (int v = 0; v < TILE_VECTORS; v++) sums[r][v] += each * weights[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++) {
            Vector sum = sums[r][v];
            if (then == SQUARE_RELU) {
                sum = larger(sum, all(0));
                sum = sum * sum;
            }
            AT(y + r * y_stride + v * W) = sum;
        }
}

INLINE void multiply_rows(
    const enum Then then, const int goes_on, const float *x, int64_t x_stride, int64_t count, const float *panel,
    int64_t depth, float *y, int64_t y_stride)
{
    for (; count >= TILE_ROWS; count -= TILE_ROWS, x += TILE_ROWS * x_stride, y += TILE_ROWS * y_stride)
        multiply_tile(TILE_ROWS, then, goes_on, x, x_stride, panel, depth, y, y_stride);
    switch (count) {
    case 5: multiply_tile(5, then, goes_on, x, x_stride, panel, depth, y, y_stride); break;
    case 4: multiply_tile(4, then, goes_on, x, x_stride, panel, depth, y, y_stride); break;
    case 3: multiply_tile(3, then, goes_on, x, x_stride, panel, depth, y, y_stride); break;
    case 2: multiply_tile(2, then, goes_on, x, x_stride, panel, depth, y, y_stride); break;
    case 1: multiply_tile(1, then, goes_on, x, x_stride, panel, depth, y, y_stride); break;
    }
}

/* x [count, depth] times a matrix of `columns` in panels -> y [count, columns]. */
INLINE void multiply(
    const enum Then then, const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth,
    int64_t columns, float *y)
{
    for (int64_t column = 0; column < columns; column += TILE)
        for (int64_t k = 0; k < depth; k += DEPTH) {
            const int64_t some = depth - k < DEPTH ? depth - k : DEPTH;
            const float *panel = matrix + column * depth + k * TILE;
            /* What follows the sums follows the last of them. */
            const int is_last = k + some == depth;
            if (k == 0 && is_last)
                multiply_rows(then, 0, x + k, x_stride, count, panel, some, y + column, columns);
            else if (k == 0)
                multiply_rows(then == ADD ? ADD : STORE, 0, x + k, x_stride, count, panel, some, y + column, columns);
            else if (!is_last)
                multiply_rows(STORE, 1, x + k, x_stride, count, panel, some, y + column, columns);
            else
                multiply_rows(then, 1, x + k, x_stride, count, panel, some, y + column, columns);
        }
}

static __attribute__((noinline)) void product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(STORE, x, x_stride, count, matrix, depth, columns, y);
}

static __attribute__((noinline)) void add_product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(ADD, x, x_stride, count, matrix, depth, columns, y);
}

static __attribute__((noinline)) void squared_product(
    const float *x, int64_t x_stride, int64_t count, const float *matrix, int64_t depth, int64_t columns, float *y)
{
    multiply(SQUARE_RELU, x, x_stride, count, matrix, depth, columns, y);
}

/* RMS norm without its weights: x [count, width] -> y. */
static void norm(const Model *model, const float *x, int64_t count, float *y)
{
    const int64_t width = model->width;
    for (; count > 0; count--, x += width, y += width) {
        Vector squares = all(0);
        for (int64_t i = 0; i < width; i += W) squares += SEEN_AT(x + i) * SEEN_AT(x + i);
        const float scale = 1.0f / sqrtf(sum_of(squares) / (float)model->hidden + model->eps);
        for (int64_t i = 0; i < width; i += W) AT(y + i) = SEEN_AT(x + i) * scale;
    }
}

/* ---- attention ---- */

static int64_t place_of(int64_t id) { return id / LOCAL; }

static int64_t class_of(int64_t id) { return id < LOCAL ? id + LOCAL : id % LOCAL; }

/* Turn the pairs of all heads [H, K], in place, to the place of an id. */
static void rotate(const Model *model, float *heads, int64_t id)
{
    const int64_t size = model->head_size;
    const float *cosines = model->rope + place_of(id) * 2 * size, *sines = cosines + size;
    for (int64_t head = 0; head < model->heads; head++, heads += size)
        for (int64_t i = 0; i < size; i += W) {
            const Vector x = SEEN_AT(heads + i);
            AT(heads + i) = x * SEEN_AT(cosines + i) + swapped(x) * SEEN_AT(sines + i);
        }
}

/* Where keys of a head lie [blocks, K, W]; its values [blocks * W, K] lie behind them. */
static float *keys_of(const Job *job, int64_t place, int64_t layer, int64_t head)
{
    const Model *model = job->model;
    const int64_t size = 2 * job->blocks * W * model->head_size;
    return job->cache + place * job->place_size + (layer * model->heads + head) * size;
}

/* Put keys and values [2, H, K] of a token into the cache. */
static void remember(const Job *job, int64_t layer, const Token *token, const float *key_value)
{
    const Model *model = job->model;
    const int64_t size = model->head_size;
    for (int64_t head = 0; head < model->heads; head++) {
        float *keys = keys_of(job, token->place, layer, head), *values = keys + job->blocks * W * size;
        const float *key = key_value + head * size, *value = key + model->heads_width;
        float *column = keys + token->slot / W * size * W + token->slot % W;
        for (int64_t i = 0; i < size; i++) column[i * W] = key[i];
        memcpy(values + token->slot * size, value, sizeof(float) * (size_t)size);
    }
}

/* Scores of a query [K] with the keys of slots from start to stop, in whole blocks; returns how many it wrote. */
INLINE int64_t score(const float *query, const float *keys, int64_t size, int64_t start, int64_t stop, float *scores)
{
    const int64_t first = start / W, last = (stop + W - 1) / W;
    int64_t block = first;
    for (; block + 4 <= last; block += 4) {
        const float *here = keys + block * size * W;
        Vector a = all(0), b = a, c = a, d = a;
        for (int64_t i = 0; i < size; i++) {
            const Vector each = all(query[i]);
            a += each * SEEN_AT(here + i * W);
            b += each * SEEN_AT(here + (size + i) * W);
            c += each * SEEN_AT(here + (2 * size + i) * W);
            d += each * SEEN_AT(here + (3 * size + i) * W);
        }
        float *to = scores + (block - first) * W;
        AT(to) = a, AT(to + W) = b, AT(to + 2 * W) = c, AT(to + 3 * W) = d;
    }
    for (; block < last; block++) {
        Vector sum = all(0);
        for (int64_t i = 0; i < size; i++) sum += query[i] * SEEN_AT(keys + (block * size + i) * W);
        AT(scores + (block - first) * W) = sum;
    }
    for (int64_t slot = first * W; slot < start; slot++) scores[slot - first * W] = -INFINITY;
    for (int64_t slot = stop; slot < last * W; slot++) scores[slot - first * W] = -INFINITY;
    return (last - first) * W;
}

/* Scores -> weights, before they are divided by their sum, which is returned. */
INLINE float soften(float *scores, int64_t count)
{
    Vector most = SEEN_AT(scores);
    for (int64_t i = W; i < count; i += W) most = larger(SEEN_AT(scores + i), most);
    const float highest = most_of(most);
    Vector sum = all(0);
    for (int64_t i = 0; i < count; i += W) {
        const Vector weights = power_of_two(SEEN_AT(scores + i) - highest);
        AT(scores + i) = weights;
        sum += weights;
    }
    return sum_of(sum);
}

/* Add the values of `count` slots, each times its weight, to W components of the sum. */
INLINE Vector weigh(const float *weights, const float *values, int64_t size, int64_t count, Vector sum)
{
    Vector b = all(0), c = b, d = b;
    int64_t slot = 0;
    for (; slot + 4 <= count; slot += 4, values += 4 * size) {
        sum += weights[slot] * SEEN_AT(values);
        b += weights[slot + 1] * SEEN_AT(values + size);
        c += weights[slot + 2] * SEEN_AT(values + 2 * size);
        d += weights[slot + 3] * SEEN_AT(values + 3 * size);
    }
    for (; slot < count; slot++, values += size) sum += weights[slot] * SEEN_AT(values);
    return (sum + b) + (c + d);
}

/* What a query [K] of one head sees -> out [K]. A branch that follows its prefix at once is one run of slots with it. */
INLINE void attend(Job *job, const Token *token, const float *query, const float *keys, int64_t size, float *out)
{
    const float *values = keys + job->blocks * W * size;
    float *scores = job->scores;
    const int64_t seen = token->seen == token->start ? 0 : token->seen, start = seen ? token->start : 0;
    const int64_t stop = token->slot + 1;
    const int64_t before = seen ? score(query, keys, size, 0, seen, scores) : 0;
    const int64_t count = before + score(query, keys, size, start, stop, scores + before);
    const float sum = soften(scores, count);
    /* The highest score weighs 1. */
    if (!(sum >= 0.5f)) job->is_broken = 1;
    for (int64_t i = 0; i < size; i += W) {
        Vector mixed = weigh(scores, values + i, size, seen, all(0));
        mixed = weigh(scores + before + start % W, values + start * size + i, size, stop - start, mixed);
        AT(out + i) = mixed / sum;
    }
}

/* Queries [count, query_width] of tokens -> mixed [count, H * K]. */
static void attend_all(Job *job, int64_t layer, const Token *tokens, int64_t count)
{
    const Model *model = job->model;
    const int64_t size = model->head_size;
    for (int64_t head = 0; head < model->heads; head++)
        for (int64_t n = 0; n < count; n++) {
            const float *query = job->query + n * model->query_width + head * size;
            float *out = job->mixed + n * model->heads_width + head * size;
            const float *keys = keys_of(job, tokens[n].place, layer, head);
            if (size == 16)
                attend(job, tokens + n, query, keys, 16, out);
            else
                attend(job, tokens + n, query, keys, size, out);
        }
}

/* ---- the model ---- */

/* Queries, keys and values of some tokens: of the first `skip` no queries. Keys and values go to the cache. */
static void look_up(Job *job, int64_t layer, const Token *tokens, int64_t count, int64_t skip, const float *x)
{
    const Model *model = job->model;
    const Layer *weights = model->layers + layer;
    const int64_t width = model->width, query_width = model->query_width, key_value_width = model->key_value_width;
    if (layer == 0) {
        for (int64_t n = 0; n < count; n++) {
            const float *first = model->first + tokens[n].id * (query_width + key_value_width);
            if (n >= skip)
                memcpy(job->query + (n - skip) * query_width, first, sizeof(float) * (size_t)query_width);
            remember(job, layer, tokens + n, first + query_width);
        }
        return;
    }
    norm(model, x, count, job->normed);
    product(job->normed, width, count, weights->key_value, model->hidden, key_value_width, job->key_value);
    product(job->normed + skip * width, width, count - skip, weights->query, model->hidden, query_width, job->query);
    for (int64_t n = 0; n < count; n++) {
        float *key_value = job->key_value + n * key_value_width;
        rotate(model, key_value, tokens[n].id);
        remember(job, layer, tokens + n, key_value);
        if (n >= skip) rotate(model, job->query + (n - skip) * query_width, tokens[n].id);
    }
}

/* A block on x [count, width], in place; of the first `skip` tokens keys and values only. */
static void run_layer(Job *job, int64_t layer, const Token *tokens, int64_t count, int64_t skip, float *x)
{
    const Model *model = job->model;
    const Layer *weights = model->layers + layer;
    const int64_t width = model->width;
    look_up(job, layer, tokens, count, skip, x);
    x += skip * width, count -= skip;
    attend_all(job, layer, tokens + skip, count);
    add_product(job->mixed, model->heads_width, count, weights->out, model->heads_width, width, x);
    norm(model, x, count, job->normed);
    squared_product(job->normed, width, count, weights->up, model->hidden, model->inner, job->inner);
    add_product(job->inner, model->inner, count, weights->down, model->inner, width, x);
}

/* The id of a class that follows an id. */
static int64_t next_id(const Model *model, int64_t id, int64_t class)
{
    if (class >= LOCAL) return class - LOCAL;
    int64_t place = (id < LOCAL ? model->mark_base[id] : place_of(id)) + (class < DIGITS);
    if (place > MAX_PLACE) place = MAX_PLACE;
    return class + LOCAL * place;
}

/* Choose what follows some tokens with hidden states x [count, width]. */
static void choose(Job *job, const Token *tokens, int64_t count, const float *x, int64_t *chosen)
{
    const Model *model = job->model;
    const int64_t columns = (CLASSES + TILE - 1) / TILE * TILE;
    norm(model, x, count, job->normed);
    product(job->normed, model->width, count, model->head, model->hidden, columns, job->inner);
    for (int64_t n = 0; n < count; n++) {
        const float *logits = job->inner + n * columns, *legal = model->legal + class_of(tokens[n].id) * CLASSES;
        int64_t best = -1;
        float highest = -INFINITY;
        for (int64_t class = 0; class < CLASSES; class++) {
            float logit = logits[class] + legal[class];
            if (tokens[n].noise) logit = logit / job->call->temperature + tokens[n].noise[class];
            if (logit > highest) highest = logit, best = class;
        }
        if (best < 0) job->is_broken = 1;
        chosen[n] = next_id(model, tokens[n].id, best < 0 ? CLASSES - 1 : best);
    }
}

/* Run `count` tokens through the model, and choose what follows all but the first `skip`. A token may see what comes
   before it in the pass. */
static void pass(Job *job, int64_t count, int64_t skip)
{
    const Model *model = job->model;
    const int64_t width = model->width, last = model->num_layers - 1;
    for (int64_t n = 0; n < count; n++)
        memcpy(job->x + n * width, model->embed + class_of(job->tokens[n].id) * width, sizeof(float) * (size_t)width);
    for (int64_t layer = 0; layer <= last; layer++)
        for (int64_t start = 0; start < count; start += CHUNK) {
            const int64_t some = count - start < CHUNK ? count - start : CHUNK;
            int64_t unasked = layer == last && skip > start ? skip - start : 0;
            if (unasked > some) unasked = some;
            run_layer(job, layer, job->tokens + start, some, unasked, job->x + start * width);
        }
    for (int64_t start = skip; start < count; start += CHUNK) {
        const int64_t some = count - start < CHUNK ? count - start : CHUNK;
        choose(job, job->tokens + start, some, job->x + start * width, job->chosen + start - skip);
    }
    job->tokens_read += count;
}

/* ---- completions ---- */

static int64_t start_of(const Call *call, int64_t branch)
{
    int64_t slot = call->prefix_length;
    for (int64_t i = 0; i < branch; i++) slot += 1 + call->branches[i].length;
    return slot;
}

static int is_unfinished(const Branch *branch, int64_t row, int64_t known)
{
    const int64_t last = branch->output[row * branch->length + known - 1];
    const int is_end = last == PAD_ID || (last >= LOCAL && last % LOCAL == EOS);
    return !is_end && known < branch->length;
}

/* Copy the first `count` slots of all heads between places of so many blocks. */
static void copy_slots(const Model *model, const float *from, int64_t from_blocks, float *to, int64_t to_blocks, int64_t count)
{
    const int64_t size = model->head_size, keys = (count + W - 1) / W * W * size;
    for (int64_t n = 0; n < model->num_layers * model->heads; n++) {
        memcpy(to, from, sizeof(float) * (size_t)keys);
        memcpy(to + to_blocks * W * size, from + from_blocks * W * size, sizeof(float) * (size_t)(count * size));
        from += 2 * from_blocks * W * size, to += 2 * to_blocks * W * size;
    }
}

/* How much of a row's prefix is kept; the last token is always read, since there is nothing to ask otherwise. */
static int64_t count_kept(const Call *call, int64_t row)
{
    if (!call->kept || !call->are_kept) return 0;
    const int64_t *kept = call->kept_ids + row * call->kept_length, *prefix = call->prefix + row * call->prefix_length;
    int64_t count = 0;
    while (count < call->kept_length && count < call->prefix_length - 1 && kept[count] == prefix[count]) count++;
    return count;
}

/* Lay out the tokens of `some` rows from `row` on, prefixes first; returns how many those have. */
static int64_t lay_out(Job *job, int64_t row, int64_t some, int64_t *count)
{
    const Call *call = job->call;
    const int64_t length = call->prefix_length;
    Token *token = job->tokens;
    for (int64_t i = 0; i < some; i++)
        for (int64_t slot = count_kept(call, row + i); slot < length; slot++)
            *token++ = (Token){call->prefix[(row + i) * length + slot], job->free[job->num_free + i], slot, 0, 0, 0};
    const int64_t skip = token - job->tokens;
    for (int64_t i = 0; i < some; i++)
        for (int64_t b = 0; b < call->num_branches; b++) {
            const Branch *branch = call->branches + b;
            const int64_t start = start_of(call, b), at = row + i;
            for (int64_t step = 0; step <= branch->drafted; step++)
                *token++ = (Token){
                    step ? branch->draft[at * branch->drafted + step - 1] : branch->mark[at],
                    job->free[job->num_free + i], start + step, length, start,
                    branch->noise ? branch->noise + (at * branch->length + step) * CLASSES : 0};
        }
    *count = token - job->tokens;
    return skip;
}

/* Let the choices behind a mark and its draft stand, as far as every drafted token before them was chosen too. */
static int64_t accept(const Branch *branch, int64_t row, const int64_t *chosen)
{
    int64_t *output = branch->output + row * branch->length, known = 0;
    const int64_t *draft = branch->draft + row * branch->drafted;
    do
        output[known] = chosen[known], known++;
    while (known <= branch->drafted && chosen[known - 1] == draft[known - 1]);
    for (int64_t step = known; step < branch->length; step++) output[step] = PAD_ID;
    return known;
}

/* Read `some` rows and choose what follows marks and drafts; what goes on becomes a unit. */
static void read_rows(Job *job, int64_t row, int64_t some)
{
    const Model *model = job->model;
    const Call *call = job->call;
    const int64_t kept_blocks = (call->kept_length + W - 1) / W;
    const int64_t kept_size = model->num_layers * 2 * kept_blocks * W * model->heads_width;
    int64_t places[PLACES], count;
    job->num_free -= some;
    memcpy(places, job->free + job->num_free, sizeof(int64_t) * (size_t)some);
    for (int64_t i = 0; i < some; i++)
        if (call->kept && call->are_kept)
            copy_slots(
                model, call->kept + (row + i) * kept_size, kept_blocks, job->cache + places[i] * job->place_size,
                job->blocks, count_kept(call, row + i));
    const int64_t skip = lay_out(job, row, some, &count);
    pass(job, count, skip);
    const int64_t *chosen = job->chosen;
    for (int64_t i = 0; i < some; i++) {
        const int64_t before = job->num_units;
        if (call->kept && !call->are_kept)
            copy_slots(
                model, job->cache + places[i] * job->place_size, job->blocks, call->kept + (row + i) * kept_size,
                kept_blocks, call->kept_length);
        for (int64_t b = 0; b < call->num_branches; b++) {
            const Branch *branch = call->branches + b;
            const int64_t known = accept(branch, row + i, chosen);
            chosen += 1 + branch->drafted;
            if (is_unfinished(branch, row + i, known))
                job->units[job->num_units++] = (Unit){row + i, places[i], b, known};
        }
        if (job->num_units == before) job->free[job->num_free++] = places[i];
    }
}

/* Put the last known token of a unit at the end of a pass. */
static Token last_token(const Job *job, const Unit *unit)
{
    const Call *call = job->call;
    const Branch *branch = call->branches + unit->branch;
    const int64_t start = start_of(call, unit->branch), at = unit->row * branch->length + unit->known;
    return (Token){
        branch->output[at - 1], unit->place, start + unit->known, call->prefix_length, start,
        branch->noise ? branch->noise + at * CLASSES : 0};
}

/* Go on with all units token by token; then all places are free. */
static void decode(Job *job)
{
    const Call *call = job->call;
    int64_t unfinished = job->num_units;
    while (unfinished > 0) {
        int64_t left = 0;
        for (int64_t i = 0; i < job->num_units; i++) {
            Unit unit = job->units[i];
            /* What has ended and waits for the others repeats its last step. */
            if (!is_unfinished(call->branches + unit.branch, unit.row, unit.known)) unit.known--;
            job->tokens[i] = last_token(job, &unit);
        }
        pass(job, job->num_units, 0);
        unfinished = 0;
        for (int64_t i = 0; i < job->num_units; i++) {
            Unit *unit = job->units + i;
            const Branch *branch = call->branches + unit->branch;
            if (is_unfinished(branch, unit->row, unit->known))
                branch->output[unit->row * branch->length + unit->known++] = job->chosen[i];
            const int goes_on = is_unfinished(branch, unit->row, unit->known);
            unfinished += goes_on;
            if (goes_on || !call->drop_finished) job->units[left++] = *unit;
        }
        job->num_units = left;
    }
    job->num_units = 0;
    for (job->num_free = 0; job->num_free < job->places; job->num_free++) job->free[job->num_free] = job->num_free;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Tokens of a row that are read at once. */
static int64_t count_read(const Call *call)
{
    int64_t count = call->prefix_length;
    for (int64_t b = 0; b < call->num_branches; b++) count += 1 + call->branches[b].drafted;
    return count;
}

/* Rows that are read at once. */
static int64_t count_at_once(const Job *job) { return clamp(CHUNK / count_read(job->call), 1, job->places); }

/* Lay a job out in memory, or nothing if that is null; returns the bytes that it takes. */
static int64_t lay_job(Job *job, const Model *model, const Call *call, char *memory)
{
    const int64_t blocks = (start_of(call, call->num_branches) + W - 1) / W;
    const int64_t place_size = model->num_layers * 2 * blocks * W * model->heads_width;
    const int64_t places = clamp(CACHE_SIZE / place_size, 1, call->rows < PLACES ? call->rows : PLACES);
    *job = (Job){.model = model, .call = call, .places = places, .blocks = blocks, .place_size = place_size};
    const int64_t read = count_read(call) * count_at_once(job), units = places * call->num_branches;
    const int64_t tokens = read > units ? read : units, classes = (CLASSES + TILE - 1) / TILE * TILE;
    const int64_t inner = model->inner > classes ? model->inner : classes;
    int64_t size = 0;
#define LAY(pointer, count)                                                                                            \
    (pointer) = memory ? (void *)(memory + size) : 0, size += ((int64_t)sizeof(*(pointer)) * (count) + 63) / 64 * 64
    LAY(job->cache, places * place_size);
    LAY(job->x, tokens * model->width);
    LAY(job->normed, CHUNK * model->width);
    LAY(job->query, CHUNK * model->query_width);
    LAY(job->key_value, CHUNK * model->key_value_width);
    LAY(job->mixed, CHUNK * model->heads_width);
    LAY(job->inner, CHUNK * inner);
    LAY(job->scores, (blocks + 2) * W);
    LAY(job->units, units);
    LAY(job->tokens, tokens);
    LAY(job->chosen, tokens);
#undef LAY
    return size;
}

/* ---- what Python calls ---- */

int64_t vector_width(void) { return W; }

int64_t tile_width(void) { return TILE; }

/* Bytes of memory that a call takes. */
int64_t memory_size(const Model *model, const Call *call)
{
    Job job;
    return lay_job(&job, model, call, 0);
}

/* Complete all branches of all rows; returns the tokens that went through the model, or -1 where scores or logits are
   no numbers. memory: `memory_size` bytes, numbers at first. */
int64_t complete(const Model *model, const Call *call, char *memory)
{
    Job job;
    lay_job(&job, model, call, memory);
    decode(&job);
    const int64_t at_once = count_at_once(&job);
    for (int64_t row = 0; row < call->rows; row += at_once) {
        const int64_t some = call->rows - row < at_once ? call->rows - row : at_once;
        if (job.num_free < some) decode(&job);
        read_rows(&job, row, some);
    }
    decode(&job);
    return job.is_broken ? -1 : job.tokens_read;
}
